"""Bundles behind the HTTP interface that OpenAI's clients speak; needs the extra `saten-runtime[serve]`.

options     what `saten-run serve` can be told; needs nothing of the extra
schema      what a request may say
answers     what is answered
batches     texts of many requests in one run
speech      one continuation, token by token, and the seats for them
models      the bundles that are served, by name
metrics     what was done, for Prometheus
connection  caps and deadlines below the routes
app         the routes, and who may call them
binding     one address, and how uvicorn answers there
server      the start, and the end
"""
