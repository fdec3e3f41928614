/* plan/cells.h - how far a model's steps of each shape are from what the ops' prices say.
 *
 * Place:   layer 5; part of learn.h's learner, which asks it behind the ops' prices and teaches it with every lesson.
 * Idea:    ops explain what carries from one model to another; what is left belongs to a model's steps of one shape: caches
 *          that its weights just fit, threads that start late, widths a kernel does not like. A cell holds it for one phase,
 *          number of tokens and of sequences (quarters of a power of two) and of keys a token sees (halves). Lessons that
 *          follow each other make a stretch; a cell says the median of its last stretches, so that an hour's worst minute
 *          is forgotten and no single wild stretch counts. A shape without a cell gets the mean of those around it, the
 *          nearer the more, drawn to nothing when they are few. What all shapes of a phase have in common from one minute
 *          to the next (a clock, a neighbour on the machine) is the pace. It says nothing of other days or models: little by
 *          little, and when cells are loaded, it is laid on them.
 * Always:  a shape that was never seen is priced by the ops, and by cells of the same model and phase alone.
 * Threads: none of its own; the caller locks. */
#ifndef IMP_CELLS_H
#define IMP_CELLS_H

#include "plan/cost.h"

enum {
    IMP_CELLS = 192,
    IMP_CELL_STRETCHES = 5,
    IMP_LEARN_PHASES = 3 /* generating, prompts, vectors */
};

typedef struct imp_cell {
    uint32_t model;                    /* its id, 0: free */
    uint32_t shape;                    /* packed: imp_cell_place */
    float at[3];                       /* log2 of tokens, sequences, keys a token sees, as last taught */
    float stretch[IMP_CELL_STRETCHES]; /* means of lessons that came together, the newest first */
    uint32_t n_stretch, in_stretch;    /* in_stretch: lessons in the newest */
    uint32_t n;                        /* lessons */
    double y;          /* log(actual / the machine's own price) without the pace: their median */
    double ops;        /* log(the ops' price / the machine's own) */
    imp_cost_shape sh; /* as last taught */
    uint64_t last;     /* the lesson's number */
} imp_cell;

typedef struct imp_cells {
    imp_cell at[IMP_CELLS];
    double pace[IMP_LEARN_PHASES];  /* log of the factor on time */
    double noise[IMP_LEARN_PHASES]; /* variance of one lesson's log residual */
    int run[IMP_LEARN_PHASES];      /* length of the current run of far residuals, negative: below */
    uint64_t n_lesson;
} imp_cells;

/* Where a step belongs. */
typedef struct imp_cell_place {
    uint32_t model, shape, phase;
    float at[3];
} imp_cell_place;

typedef struct imp_cell_view {
    double r;     /* log(expected / what the ops say), without the pace */
    uint32_t own; /* the cell of that shape, UINT32_MAX: none */
    double near;  /* how much is known about shapes around it, 0 to 1 */
} imp_cell_view;

void imp_cells_init(imp_cells *s);
/* Vectors (2), prompts (1), or sequences that generate, with or without guesses (0). */
uint32_t imp_cell_phase(const imp_cost *c, const imp_cost_shape *sh);
imp_cell_place imp_cells_place(const imp_cost *c, const imp_cost_shape *sh);
/* ops: log(the ops' price / the machine's own) of that step. A cost without an id has no cells. */
imp_cell_view imp_cells_look(const imp_cells *s, const imp_cell_place *p, double ops);
/* Variance of the log of a prediction but for chance; ops_var: that of the ops' price. */
double imp_cells_doubt(const imp_cells *s, const imp_cell_view *v, double ops_var);
/* Is the shape known well, so that a far residual says that the unit has changed? */
bool imp_cells_known(const imp_cells *s, const imp_cell_view *v);
/* Lays the pace on the cells: what shapes with cells are thought to take stays the same. */
void imp_cells_settle(imp_cells *s);
/* A lesson: r is log(actual / the ops' price). Returns the cell. */
imp_cell *imp_cells_teach(imp_cells *s, const imp_cell_place *p, const imp_cost_shape *sh,
                          const imp_cell_view *v, double ops, double r);

#endif
