"""The web app: Gradio pages on top of an `Engine`, in one process with the HTTP API.

`app.create_web_app` builds it. Gradio is needed here only; `pip install "mask2former[serve]"` has it.
"""
