"""The vocabulary of everything that pretends to speak in the sandbox: the stub engine and the tiny Llama."""

_TEXT = """
amber anchor apple arrow autumn basin beacon birch blue border breeze bridge bright bronze brook calm candle canyon
cedar circle clay clear cliff cloud clover coast cobalt copper coral cotton creek crystal current dawn deep delta
desert distant drift dusk early east echo ember evening falcon feather fern field fire first flint fog forest fossil
fresh garden gentle glacier glass golden granite grass gravel green grove harbor hazel heron hidden high hill hollow
horizon island ivory jade juniper kettle lagoon lake lantern late leaf light lilac linen little long low lunar maple
marble marsh meadow mellow mild mint mist moon morning moss mountain narrow near night north oak ocean olive open
orchard otter outer pale path pearl pebble pine plain plum pond poplar prairie quartz quiet rain rapid raven red reed
ridge ripple river robin rose rough round saffron salt sand scarlet sea season shade shell shore silent silver slate
slow small smoke snow soft south spark spring spruce star steady still stone storm stream summer sun swift tall tide
timber twilight upper valley velvet violet walnut warm water wave west wheat white wild willow wind winter wood
"""

WORDS = tuple(_TEXT.split())
