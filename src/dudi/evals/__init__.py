"""Evaluation: any checkpoint folder on any benchmark folder, scored and averaged in SEA-HELM's way."""
