"""The interface of the tools of YouTube-VIS."""
