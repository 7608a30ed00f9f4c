"""Fisher-weighted merging of fine-tuned models, as a DVC pipeline.

`python -m stages.NAME` runs a stage; `stages.curvature` and `stages.merging` are libraries of their own.
"""
