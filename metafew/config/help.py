"""The text of ``--help``."""

from __future__ import annotations

from metafew.config.groups import describe_groups

HEADER = """\
metafew: few-shot meta-learning experiments.

  python train.py [group=option ...] [key=value ...]

Each group takes one of the options below. Every other value that --cfg job prints can be set as key=value.
"""
FOOTER = """\
More examples
  python train.py head=svm norm=tasknorm dataset=omniglot trainer.max_steps=200
  python train.py evaluate=[svm,ridge]                        evaluate more heads on the same test tasks
  python train.py train.way=20 test.shot=[1,5]                other tasks
  python train.py -m head=protonet,ridge,svm norm=tasknorm,batch    a sweep: one run for each combination
  python train.py stages=[test] ckpt=outputs/.../checkpoints/best.ckpt    test a trained model
  python train.py experiment=unraveling_table1                a published table; the same command resumes it
  python train.py head=svm --cfg job                          print every value and run nothing
"""


def help_text() -> str:
    """Return a description of every group and its options."""
    lines, groups = [HEADER], describe_groups()
    for group, options in groups.items():
        lines.append(group)
        lines += [f"  {f'{group}={option}':<23} {description}" for option, description in options.items()]
    heads = ",".join(groups["head"])
    lines += ["evaluate", f"  evaluate=[{heads}]  heads to evaluate in addition to the one that trains", "", FOOTER]
    return "\n".join(lines)
