"""The published reference implementation: its name, and its versions by the digest of its file."""

NAME = "NUS-HPC-AI-Lab/InfoBatch"
# sha256 of infobatch/infobatch.py -> a commit that holds it. A copy without git is known by this.
COMMITS = {
    "bcb2a42551bbdfd56bc08bf155d1c0f464a04049d208577dcc43808f9b6e0499": (
        "8bbb012c256c9eb4de3bb209f8a5e73899de8d02"
    ),
}
