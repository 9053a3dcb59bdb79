"""Serving of models: an engine with a queue and one worker, and the HTTP API on top of it.

`engine.Engine` knows nothing of HTTP, and what else shows results to people can use it too; `app.create_app` needs
`pip install "mask2former[serve]"`.
"""
