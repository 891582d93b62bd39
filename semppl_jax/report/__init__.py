"""A report on one run, or several: a page that needs nothing but itself.

  python -m semppl_jax.report DIR [DIR ...] [--out FILE.html]

`run_files` and `network` look at a run, `page` puts together what the other
modules make of it. What comes from files is text, never markup: see `markup`.
"""
