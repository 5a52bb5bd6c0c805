"""From an item's bytes to its row: the only definition of an item's point, curve, embedding and interval.

`pipeline`   bytes -> embeddings: fetch, decode, batch across items, embed; every item becomes a row or an error
`heads`      embeddings, fresh or stored -> points, curves, intervals, moods
`stages`     the same in two stages, for CPUs that decode for GPUs
`isolation`  one item at a time in a process that may die, or hang up to a time limit
"""
