"""One page about training runs and evaluations, from their files alone: no model, no torch.

files      what is read: run folders (`runs`), evaluation folders (`evals`), checked line by line
numbers    what is computed: `training` (runs), `compare` (evaluations), `answers` (responses side by side)
page       what is shown: `scores`, `course`, `figures` make blocks; `html` and `markdown` print the same blocks
`write`    puts the files into one folder, the page last
"""
