"""Fisher-weighted merging of fine-tuned models, as a DVC pipeline.

`python -m stages.NAME` runs a stage; `stages.curvature` and `stages.merging` are libraries of their own.
"""

import sys

if sys.argv[0] == "-m":  # a stage is about to be imported, which takes seconds: Ctrl-C may come before it is run
    from stages.running.interruption import say_interrupted

    sys.excepthook = say_interrupted
