"""dudi: distillation of small language models for Southeast Asian languages.

Read in this order: `methods` (equation 8 and Table 1), `verbalizer` (p_z and z), `losses` and `chunked` (the
mathematics), `objective` (a method evaluated), `trainer` (one optimizer step), `train` (a recipe, run).
"""

__version__ = "0.1.0"
