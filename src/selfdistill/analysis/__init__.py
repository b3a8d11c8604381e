"""Analysis: what a run has learned, from its folder or its weights to pages that open in any browser.

In: a run folder, or a recipe. Out: token x-rays, training dynamics, the papers' analyses, as HTML and as figures.
Nothing in the packages upstream imports this one.
"""
