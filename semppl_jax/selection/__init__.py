"""Which images to label: USL, from features of all of them."""
