import sys,pickle,numpy as np,torch as th
th.set_num_threads(1)
from pathlib import Path
from benchmarks.labels import *
from sb3_pmpo import PMPO
folder,task,out=Path(sys.argv[1]),sys.argv[2],sys.argv[3]
env=make_task(task,2)
m=PMPO.load(folder/"model.zip",device="cpu",env=env)
rng=np.random.default_rng(0)
ep=play(m,env,rng,40000)
print('returns',[round(e.rewards.sum()) for e in ep][:20],flush=True)
s=score(m,env,ep,np.random.default_rng(7),1200,4)
pickle.dump(s,open(out,'wb'))
h=s.outcomes; print('halves',correlation_within(h[...,:2].mean(-1),h[...,2:].mean(-1)), 'own',agreement(m.critic_target,s))
