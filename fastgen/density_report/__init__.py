"""`fastgen density`: which estimator tells a table best, as a table, a picture, and JSON."""
