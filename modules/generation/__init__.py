"""One request becomes pictures: request, plan, engine, infotext."""
