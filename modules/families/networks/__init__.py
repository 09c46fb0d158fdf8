"""Networks that change a loaded model for one run and leave no trace: LoRA and its relatives, textual inversions,
hypernetworks; and two changes of how it computes, tiling and token merging.

    tags = extract_networks(prompt)[1]                          prompt/networks.py
    networks, warnings = networks_from(tags, library)           library/network_tags.py
    with applied(model, networks) as report: …                  applied.py: report.warnings, report.embeddings
    with tiling(model): …    with token_merging(model, ratio): …   with step_caching(model, every): …
    embeddings = Embeddings(library, model, report.embeddings)  embeddings.py: TextOptions(embeddings=embeddings)
"""
