/* Named steps of a job at which a process can be made to die: only in the variant that proves what deaths do (make
 * chaos). In: TF_FAIL_POINT=NAME:K[:ID-PREFIX] in the environment. Out: SIGKILL at the K-th pass of a job whose id
 * begins so. In every other variant nothing of it is compiled. */
#ifndef TF_COMMON_FAIL_POINT_H
#define TF_COMMON_FAIL_POINT_H

#ifdef TF_FAIL_POINTS
/* name: as the environment has it; id: the job's. From any thread. Says on stderr that it kills. */
void tf_fail_point(const char *name, const char *id);
#define TF_FAIL_POINT(name, id) tf_fail_point(name, id)
#else
#define TF_FAIL_POINT(name, id) ((void)0)
#endif

#endif
