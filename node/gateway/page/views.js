// The views, in the order of the navigation.

import * as chat from "./views/chat.js";
import * as imagine from "./views/imagine.js";
import * as ledger from "./views/ledger.js";
import * as network from "./views/network.js";
import * as owner from "./views/owner.js";
import * as speech from "./views/speech.js";

export const views = [chat, imagine, speech, network, ledger, owner];
