"""Engines that compute an encoder's network. torch in float32 is the reference for the others.

`torch`       the encoder as in training and evaluation.
`torch-bf16`  the same under bfloat16 autocast, if the processor has instructions for it.
`onnx`        the exported network in ONNX Runtime on one thread. If the family has a front in numpy, a worker imports
              neither torch nor transformers.
`cuda`        the encoder on a GPU in float32; `cuda-bf16` under autocast.
"""
