"""selfdistill: post-train reasoning language models on their own rollouts.

The same model, shown privileged text (a worked solution, part of one, a sibling's success, feedback), re-scores the
tokens that it wrote without that text, and learns from the difference. One training step is one straight line, and each
arrow is one package::

    Question --sample--> Rollout --verify--> Verdict --contextualise--> PrivilegedPrompt | None
             --weigh--> weight --score--> hidden states (student, teacher)
             --compare--> per-token record --> loss --> update

Docstrings that cite METHODS, as in "METHODS 3.4", mean that section of docs/methods.md.

Importing this package is cheap: torch and transformers are imported by the parts that need them.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
