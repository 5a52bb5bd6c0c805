"""From an item's bytes to its rows: the one definition of an item's point, curve, embedding and interval.

`pipeline`   bytes -> embeddings: fetch, decode, batch across items, embed; every item ends in a row or an error
`heads`      embeddings, fresh or stored -> points, curves, intervals, moods
`stages`     the same in two stages, for CPUs that decode for GPUs
`engines`    which engine computes: chosen, calibrated (`calibration`), loaded
`isolation`  one item at a time in a process that may die; a time limit ends a process whose decoder hangs
"""
