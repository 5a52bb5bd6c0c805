"""What computes an encoder's network. torch in float32 is the reference that the others are compared with.

`torch`       the encoder as training and evaluation use it.
`torch-bf16`  the same under bfloat16 autocast, where the processor has instructions for it.
`onnx`        the network exported once, run by ONNX Runtime on one thread. If the family has a front in numpy, such a
              worker imports neither torch nor transformers.
`cuda`        the encoder on a GPU in float32; `cuda-bf16` under autocast.
"""
