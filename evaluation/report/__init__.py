"""The page that compares runs: records of evaluations, training curves and configs in, one HTML file out.

  records.py    which records are shown, and under which label
  columns.py    which numbers stand in one column, how they are written, which is the best
  plots.py      quality against cost, training curves: SVG
  pictures.py   samples and other pictures: data URIs
  page.py       all of it -> page.html.j2
"""
