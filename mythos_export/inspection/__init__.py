"""What is in a bundle, read without torch, onnx or a runtime."""
