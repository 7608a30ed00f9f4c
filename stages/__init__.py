"""Fisher-weighted merging of fine-tuned models, as a DVC pipeline.

`python -m stages.NAME` runs a stage; `stages.curvature` and `stages.merging` are libraries of their own.
"""

import sys

# Where a stage is the program, its imports take seconds, and Ctrl-C may come before it is run. Importing the libraries
# from elsewhere changes nothing.
if sys.argv[0] == "-m" and sys.orig_argv[sys.orig_argv.index("-m") + 1].startswith(f"{__name__}."):
    from stages.running.interruption import say_interrupted

    sys.excepthook = say_interrupted
