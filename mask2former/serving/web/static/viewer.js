// Shows the label of the object under the mouse or finger. Results are replaced inside `element`, which stays.
function label(event) {
  const stage = event.target.closest(".m2f-stage");
  if (!stage) return;
  const tip = stage.querySelector(".m2f-tip");
  const path = event.target.closest("path[data-label]");
  for (const other of stage.querySelectorAll("path.m2f-on")) if (other !== path) other.classList.remove("m2f-on");
  tip.hidden = !path;
  if (!path) return;
  path.classList.add("m2f-on");
  tip.textContent = path.dataset.label;
  const box = stage.getBoundingClientRect();
  const x = Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 4);
  const y = event.clientY - box.top + 18;
  tip.style.left = Math.max(4, x) + "px";
  tip.style.top = (y + tip.offsetHeight > box.height ? y - tip.offsetHeight - 26 : y) + "px";
}
element.addEventListener("pointermove", label);
element.addEventListener("pointerdown", label);
element.addEventListener("pointerout", (event) => {
  const stage = event.target.closest(".m2f-stage");
  if (!stage || event.pointerType !== "mouse" || stage.contains(event.relatedTarget)) return;
  stage.querySelector(".m2f-tip").hidden = true;
  for (const path of stage.querySelectorAll("path.m2f-on")) path.classList.remove("m2f-on");
});
