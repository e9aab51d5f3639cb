"""Your own network, from a folder of images to a running one: found blocks, a gate, your training loop, export, run.

    python examples/06_your_network.py photos

The docs' tutorial makes ``photos``: train/CLASS/*.png and test/CLASS/*.png. Put your network in the place of
``my_network.py``. About a minute on two CPU cores. Needs: pip install ".[train]"
"""

import sys

import torch
from my_network import resnet18
from torch.nn.functional import cross_entropy

import dfs_deploy as dfs

STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 200  # of the network alone, then as many with its gate

train, test = (dfs.load_dataset(sys.argv[1], split, size=(64, 64)) for split in ("train", "test"))
contract = dfs.InputContract((3, 64, 64), class_names=train.class_names)
images, labels = torch.from_numpy(contract.normalize(train.images)), torch.from_numpy(train.labels)

net = resnet18(classes=len(train.class_names))
model = dfs.adapt(net, dfs.find_blocks(net, images[:1]), options="skip,8")  # shares the weights of net
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for step in range(2 * STEPS):
    rows = torch.randint(len(images), (32,))
    x, y = images[rows], labels[rows]
    loss = cross_entropy(net(x), y) if step < STEPS else cross_entropy(model(x).logits, y) + model.cost_loss(target=4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval().save("your-network.pt", contract)

dfs.export("your-network.pt", "your-network.dfs", targets="fp32,int8", calibration_data=train)
with dfs.Runtime("your-network.dfs") as runtime:
    result = runtime(test.images)
print(f"top-1 {(result.classes == test.labels).mean():.2%} at {result.computation_percentage.mean():.1f} % computation")
