"""The filter for chemical, biological, radiological and nuclear (CBRN) hazards: keywords first, then a classifier.

It drops text that tells, asks or offers how to get, make or use such a weapon, and keeps history, medicine, treaties,
power stations and school chemistry. All that it was trained on is made from the templates here, which name restricted
intents and classes of things and contain no fact about either.
"""
