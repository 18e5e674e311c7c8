def html(run, verdict):
    return ""
