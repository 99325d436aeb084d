"""The kill matrix: every fault point of the code, and everything that can go wrong there.

points.py   which points there are: those that a whole life of a pod reaches, and those that the code names
cells.py    what can go wrong at a point: the cells of the matrix
life.py     a pod's life as a kubelet leads it, with the retries of a kubelet
arena.py    a private daemon, the blow of a cell, and what must be true after it
run.py      all of it, as a table: `make chaos`
"""
