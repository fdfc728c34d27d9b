"""From a federated model to a bundle: ONNX graphs, int8 arithmetic, quality before and after, one signature."""
