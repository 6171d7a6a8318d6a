"""Pictures of volumes: slices read from files, shades, and what they are drawn on: files of Matplotlib, PNG, a page.

Drawing on the terminal is the command line's (`cli/drawing.py`); what is drawn comes from here.
"""
