"""lm-evaluation-harness (package `lm-eval`, an extra) as a second evaluator: its log p, its accuracy, our records."""
