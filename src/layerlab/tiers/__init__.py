"""The seven built-in tiers: the rungs of one ladder, one file each.

Each takes one more thing off the author's hands; the first sentence of each file says what is still by hand.
`_plumbing` holds what every torch tier needs and none of them teaches.
"""
