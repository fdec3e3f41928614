/* dev/experts/experts.h - a mixture of experts on two devices: the experts on one, everything else on the other.
 *
 * Idea:    of such a model most bytes are experts, of which a token needs a few; attention, its cache and what every token
 *          needs go to the fast device, the experts' weights stay where there is room. At each of its layers' mixtures a step
 *          goes over with its rows and their router's logits, and comes back with one row each. */
#ifndef IMP_DEV_EXPERTS_H
#define IMP_DEV_EXPERTS_H

#include "dev/dev.h"

/* Named "cuda0+cpu0:experts"; takes both, also when it fails. Graphs without experts run whole on the first. INVALID: the first
 * cannot leave nodes to others, or the second is of a kind that compiles in the background. */
IMP_MUST_USE imp_status imp_dev_experts_open(imp_device *first, imp_device *experts, imp_device **out,
                                             imp_error *err);

#endif
