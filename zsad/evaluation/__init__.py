"""How well a detector does on labelled images: from a data set to figures and a page.

The way of one image: `truth` reads it and its mask, `compare` inspects it and counts pixels, `tally` adds up what
workers send, `figures` turns counts into figures, `page` and `summary` into what people read. No Ray:
`zsad.distributed.evaluate` maps these over workers.
"""
