#!/usr/bin/env python
"""Measure the HTTP API on loopback: requests from many clients at once, none lost; times, speed and memory.

```bash
python tools/benchmark_serving.py                                  # 500 requests from 16 clients
python tools/benchmark_serving.py --requests 2000 --clients 8      # memory over 2,000 requests
```

The server runs in a process of its own, with the bundled model at a small size. Every answer is checked: its size must
be that of the image that was sent. It needs `pip install "mask2former[serve]" httpx2`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs without the package installed

_ATTEMPTS = 1000  # of one request, while the queue is full
_START_SECONDS = 300


@dataclass
class Measured:
    """What the clients saw: seconds of each answer, statuses, and memory of the server in MiB after some requests."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    memory: list[tuple[int, float]] = field(default_factory=list)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=500, help="number of requests (default: 500)")
    parser.add_argument("--clients", type=int, default=16, help="that send at the same time (default: 16)")
    parser.add_argument("--size", type=int, default=64, help="edge of the images in pixels (default: 64)")
    parser.add_argument("--sizes", type=int, default=1, help="number of different sizes of images (default: 1)")
    parser.add_argument("--bad", type=int, default=0, metavar="N", help="every N-th file is damaged (default: none)")
    parser.add_argument("--max-images", type=int, help="images in a batch (default: 8 on a GPU, else 1)")
    parser.add_argument("--max-waiting", type=int, default=64, help="places in the queue (default: 64)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--full-size", action="store_true", help="run the model at its own size, not that of the images"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


# ------------------------------------------------------------------ the server
def run_server(args: argparse.Namespace, connection: Any) -> None:
    """Serve until the other end of the connection says so."""
    import threading

    import torch

    from mask2former.serving.app import create_app
    from mask2former.serving.engine import Batching, Engine, ModelSource
    from mask2former.serving.server import make_server

    if args.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    small = () if args.full_size else ("INPUT.MIN_SIZE_TEST", str(args.size))
    source = ModelSource.named("nuclei", overrides=(*small, "MODEL.MASK_FORMER.TEST.TILES.SIZE", "0"))
    batching = Batching(max_images=args.max_images, max_waiting=args.max_waiting, timeout=600.0)
    engine = Engine({"nuclei": source}, batching=batching, device=args.device)
    server = make_server(create_app(engine), port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    connection.send((server.servers[0].sockets[0].getsockname()[1], engine.device))
    while connection.recv() == "memory":
        connection.send(resident())
    server.should_exit = True
    thread.join(60)


def resident() -> float:
    """Return the memory of this process in MiB; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# ------------------------------------------------------------------ the clients
async def ask(address: str, args: argparse.Namespace, connection: Any) -> Measured:
    """Send all requests and return what came back."""
    import httpx2

    measured, numbers = Measured(), iter(range(args.requests))
    images = [blobs(args.size + 8 * i, args.size, seed=i) for i in range(args.sizes)]
    every = max(1, args.requests // 8)
    async with httpx2.AsyncClient(base_url=address, timeout=600, trust_env=False) as client:

        async def one_client() -> None:
            for number in numbers:
                data, size = images[number % len(images)]
                bad = bool(args.bad) and number % args.bad == 0
                start = time.perf_counter()
                answer = await send(client, data[: len(data) // 2] if bad else data)
                measured.seconds.append(time.perf_counter() - start)
                measured.statuses[answer.status_code] += 1
                if bad:
                    measured.wrong += answer.status_code != 422
                else:
                    content = answer.json()
                    measured.wrong += (content.get("height"), content.get("width")) != size
                if len(measured.seconds) % every == 0:
                    connection.send("memory")
                    measured.memory.append((len(measured.seconds), connection.recv()))

        for _ in range(3):  # loads the model
            (await client.post("/v1/segment", content=images[0][0])).raise_for_status()
        begin = time.perf_counter()
        await asyncio.gather(*(one_client() for _ in range(args.clients)))
        measured.seconds.append(time.perf_counter() - begin)
    return measured


async def send(client: Any, data: bytes) -> Any:
    """Send an image, again as long as the queue is full."""
    for _ in range(_ATTEMPTS):
        answer = await client.post("/v1/segment", content=data)
        if answer.status_code != 429:
            return answer
        await asyncio.sleep(0.05)
    raise RuntimeError("the queue is always full")


def blobs(height: int, width: int, seed: int) -> tuple[bytes, tuple[int, int]]:
    """Return a PNG of bright disks on dark ground, and its size."""
    rng = np.random.default_rng(seed)
    image, (y, x) = rng.integers(0, 30, (height, width)).astype(np.uint8), np.mgrid[:height, :width]
    for cy, cx in rng.uniform(0, min(height, width), (6, 2)):
        image[(y - cy) ** 2 + (x - cx) ** 2 < 36] += 150
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(image[:, :, None], 3, axis=2)).save(buffer, "PNG")
    return buffer.getvalue(), (height, width)


def report(measured: Measured, args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Return the numbers of a run."""
    total, seconds = measured.seconds[-1], sorted(measured.seconds[:-1])
    return {
        "device": device,
        "requests": args.requests,
        "clients": args.clients,
        "answers": dict(sorted(measured.statuses.items())),
        "lost": args.requests - sum(measured.statuses.values()),
        "wrong": measured.wrong,
        "images_per_second": round(args.requests / total, 2),
        "p50_ms": round(1000 * statistics.median(seconds), 1),
        "p99_ms": round(1000 * seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))], 1),
        "memory_mib": [[number, round(value, 1)] for number, value in measured.memory],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the measurement; return 1 if an answer was lost or wrong."""
    args = parse_arguments(arguments)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=run_server, args=(args, there), daemon=True)
    process.start()
    try:
        if not here.poll(_START_SECONDS):
            raise RuntimeError("the server did not start")
        port, device = here.recv()
        measured = asyncio.run(ask(f"http://127.0.0.1:{port}", args, here))
        here.send("stop")
        process.join(60)
    finally:
        process.kill()
    numbers = report(measured, args, device)
    if args.json:
        print(json.dumps(numbers))
    else:
        print("\n".join(f"{name}: {value}" for name, value in numbers.items()))
    return int(bool(numbers["lost"] or numbers["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
