"""The web dashboard: look at what the reactive tasks do, and change what has to be changed by hand.

Made by `Reactive.dashboard()`, by itself under `celery-reactive dashboard`, or mounted in another application. One ASGI
application: `guard` lets requests in, `pages` answers people and `api` programs, both by the calls of `management`.
Needs the extra `dashboard`. Must never answer anybody but this machine unless somebody has decided who may look.
"""
