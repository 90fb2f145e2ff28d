"""The executable reading of `spec/`.

Rule of this package: it takes bytes, values and `now`, and gives bytes and values back. It never
sleeps, opens, reads a clock or draws a random number, so each rule can be tested by the thousand.
"""
