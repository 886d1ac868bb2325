"""From a bundle to engines; needs neither torch nor onnx, so a device can build its own."""
