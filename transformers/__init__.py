"""KServe transformers, by modality."""

if __name__ == "transformers":  # the folder in a checkout, found before the installed package of that name
    raise ImportError(
        "this is kservekit's folder transformers/, not Hugging Face's package: run from another folder, "
        "or import kservekit.transformers"
    )
