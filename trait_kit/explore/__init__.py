"""What moves in JupyterLab: the same pages stand still in batch and in an exported notebook.

A page is a function of what a step wrote and of where its controls stand; it computes nothing that a step should.
"""
