"""Speed and memory beside the bare matrix products and the peers: ``python -m benchmarks.head`` and its siblings.

Each command prints one table and writes one JSON file; README.md says what is compared and how to read it. The code
under test is called in :mod:`benchmarks.ours` and :mod:`benchmarks.ours_training`, peers in :mod:`benchmarks.peers` and
:mod:`benchmarks.trl_update`; nothing of a peer's is copied.
"""
