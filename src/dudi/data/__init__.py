"""Where the rows come from: SEA-Instruct and chat files, validated, sampled with a seed, written with a manifest.

Read in this order: `conversation` (one row: text to Example, and what makes it broken), `sea_instruct` and `chat` (the
two kinds of source), `load` (rows for training), `rows` (on disk), `cli` (`dudi data`). Empty on purpose: importing
`dudi.data` costs nothing.
"""
