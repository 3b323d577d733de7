"""`celery-reactive demo`: the whole system on this machine, watched, disturbed and audited.

`command` is what click calls and `story` what happens, in order; read that first. `processes` starts and ends
what runs beside it: two planners and a worker of the sample project `app`, and the shop (`writer`), which knows
nothing of this package. The handler of `app` writes down each of its runs, by the database's clock; `audit`
judges afterwards from what was written down, not from what the package says of itself. `board` shows it.
"""
