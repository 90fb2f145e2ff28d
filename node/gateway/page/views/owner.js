// My node: what it does, serves and allows, for its owner.
// Rule: each tab is a file of its own; what changes the node asks its operations, and asks the person first where
// something would be lost.

import { el } from "../dom.js";
import { ownersOnly } from "../pieces.js";
import { tabs } from "../tabs.js";
import * as blocks from "./owner/blocks.js";
import * as connect from "./owner/connect.js";
import * as devices from "./owner/devices.js";
import * as keys from "./owner/keys.js";
import * as limits from "./owner/limits.js";
import * as logs from "./owner/logs.js";
import * as models from "./owner/models.js";
import * as overview from "./owner/overview.js";
import * as workers from "./owner/workers.js";

const id = "owner";

const TABS = [overview, models, devices, workers, limits, keys, blocks, logs, connect];

export function mount(root, context) {
  return ownersOnly(root, context, "This is the owner’s desk", (place) => {
    place.append(el("h1.unseen", {}, "My node"));
    return tabs(place, id, "My node", TABS, context);
  });
}
