"""Models as files that run without this package: ONNX, torch.export, AOTInductor, TorchScript."""
