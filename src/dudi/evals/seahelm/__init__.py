"""SEA-HELM at a checkout of the user's: its prompts, our answers, its scores, our records."""
