"""Pictures of volumes: slices are read from files, become panels of shades, and are drawn.

They are drawn by Matplotlib, as PNG images on an HTML page, or on the terminal by `cli/drawing.py`.
"""
